"""Results of each image on disk."""

import pandas as pd
import pytest

from diffguard_pl import InputError
from diffguard_pl.runs.store import Header, PartWriter, part_files, read_header, read_scores

HEADER = Header(["l2"], ["a", "b"], {"b": "near"}, [])


def written(folder, *parts, header=HEADER, name="000-0000"):
    """Write each list of results as one part."""
    writer = PartWriter(folder, header, name)
    for results in parts:
        writer.add(results)
        writer.flush()
    return writer


def result(index, dataset="a", **columns):
    return {"dataset": dataset, "index": index, "l2": -float(index)} | columns


def test_results_are_read_dataset_by_dataset_in_the_order_of_the_images(tmp_path):
    written(tmp_path, [result(1, "b"), result(1)], [result(0, "b"), result(0)])
    frame, header = read_scores(tmp_path)
    assert list(zip(frame["dataset"], frame["index"], frame["l2"], strict=True)) == [
        ("a", 0, 0.0),
        ("a", 1, -1.0),
        ("b", 0, 0.0),
        ("b", 1, -1.0),
    ]
    assert header == read_header(part_files(tmp_path)[0]) == HEADER


def test_a_result_that_two_writers_wrote_is_read_once(tmp_path):
    written(tmp_path, [result(0), result(1)])
    written(tmp_path, [result(1), result(2)], name="000-0001")
    assert read_scores(tmp_path)[0]["index"].tolist() == [0, 1, 2]


def test_arrays_are_stored_in_half_precision_and_read_on_request(tmp_path):
    header = Header(["l2"], ["a"], {}, ["input_logits"])
    written(tmp_path, [result(0, input_logits=[0.5, 2.0])], header=header)
    assert "input_logits" not in read_scores(tmp_path)[0]
    stored = read_scores(tmp_path, columns=["input_logits"])[0]["input_logits"][0]
    assert (stored.dtype, stored.tolist()) == ("float16", [0.5, 2.0])


def test_pandas_alone_reads_the_scores(tmp_path):
    written(tmp_path, [result(0)], [result(1, error="broken")])
    frame = pd.read_parquet(tmp_path / "scores")
    assert frame["l2"].tolist() == [0.0, -1.0]
    assert frame["error"].isna().tolist() == [True, False]


def test_a_part_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    writer = written(tmp_path, [result(0)])
    (tmp_path / "scores").rename(tmp_path / "elsewhere")
    (tmp_path / "scores").write_text("in the way")
    writer.add([result(1)])
    with pytest.raises(InputError, match=r"part-000-0000-000001.parquet: cannot .*--resume"):
        writer.flush()
    (tmp_path / "scores").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "scores")
    assert read_scores(tmp_path)[0]["index"].tolist() == [0]


def test_a_damaged_part_is_named_with_the_remedy(tmp_path):
    written(tmp_path, [result(0)], [result(1)])
    second = part_files(tmp_path)[1]
    second.write_bytes(second.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"part-000-0000-000001.parquet: cannot .*remove it"):
        read_scores(tmp_path)
    second.unlink()
    assert len(read_scores(tmp_path)[0]) == 1


def test_a_folder_without_parts_and_a_foreign_parquet_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: not a diffguard_pl run"):
        read_scores(tmp_path)
    (tmp_path / "scores").mkdir()
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "scores" / "part-0.parquet")
    with pytest.raises(InputError, match=r"part-0.parquet: not a part"):
        read_scores(tmp_path)
