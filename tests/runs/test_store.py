"""Results of each image on disk."""

import json
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from helpers import ROOT
from pyarrow import parquet

from diffguard_pl import InputError
from diffguard_pl.runs.store import (
    METADATA_KEY,
    Header,
    PartWriter,
    encode_part,
    part_files,
    read_header,
    read_scores,
)

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


def test_no_flipped_bit_passes(tmp_path):
    written(tmp_path, [result(i, label=i, path=f"{i}.png") for i in range(20)])
    part = part_files(tmp_path)[0]
    intact = part.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(intact)), 200):
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        part.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{part.name}: .*remove it.*--resume"):
            read_scores(tmp_path)


def test_a_part_without_a_hash_is_refused(tmp_path):
    written(tmp_path, [result(0)])
    part = part_files(tmp_path)[0]
    # one bit of a score is wrong in this part, which an earlier version wrote
    part.write_bytes((ROOT / "tests" / "runs" / "part_bitflip_7737.parquet").read_bytes())
    with pytest.raises(InputError, match=rf"{part.name}: .*hash.*remove it"):
        read_scores(tmp_path)


def test_other_readers_can_verify_the_pages(tmp_path):
    written(tmp_path, [result(i) for i in range(20)])
    part = part_files(tmp_path)[0]
    column = parquet.read_metadata(part).row_group(0).column(2)
    content = bytearray(part.read_bytes())
    content[column.data_page_offset - 10] ^= 1  # a value of the page before
    part.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        parquet.read_table(part, page_checksum_verification=True)


def rewrite(part: Path, change) -> None:
    """Replace the table of a part, with a valid hash."""
    part.write_bytes(encode_part(change(parquet.read_table(part))))


def with_header(change):
    """Return a function that replaces the header of a table by what ``change`` makes of it."""

    def replace(table: pa.Table) -> pa.Table:
        header = json.loads(table.schema.metadata[METADATA_KEY])
        return table.replace_schema_metadata({METADATA_KEY: change(header)})

    return replace


def as_text(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("l2"), "l2", pa.array(["x"] * len(table)))


@pytest.mark.parametrize(
    "change",
    [
        as_text,
        lambda table: table.drop_columns(["l2"]),
        lambda table: table.append_column("more", table["l2"]),
        with_header(lambda header: b"{"),
        with_header(lambda header: b"[" * 100_000),
        with_header(lambda header: b"[]"),
        with_header(lambda header: json.dumps(header | {"further": 1})),
        with_header(lambda header: json.dumps(header | {"scores": "l2"})),
        with_header(lambda header: json.dumps(header | {"groups": ["near"]})),
        with_header(lambda header: json.dumps(header | {"datasets": ["b"], "groups": {}})),
    ],
)
def test_a_part_of_another_form_is_named_with_the_remedy(tmp_path, change):
    written(tmp_path, [result(0)], [result(1)])
    part = part_files(tmp_path)[0]
    rewrite(part, change)
    with pytest.raises(InputError, match=rf"{part.name}: .*remove it") as refused:
        read_scores(tmp_path)
    assert len(str(refused.value)) < 500


def test_a_part_of_another_run_is_refused(tmp_path):
    written(tmp_path, [result(0)])
    other = Header(["l2"], ["a", "b"], {"b": "far"}, [])
    written(tmp_path, [result(1)], header=other, name="001-0000")
    with pytest.raises(InputError, match=r"part-001-0000-000000.parquet: .*another run"):
        read_scores(tmp_path)


@pytest.mark.parametrize(
    "name", ["part-0.parquet", "part-000-0000-000000 (1).parquet", "part-a-b-c.parquet"]
)
def test_a_file_that_is_not_named_as_a_part_is_refused(tmp_path, name):
    written(tmp_path, [result(0)])
    first = part_files(tmp_path)[0]
    (first.parent / name).write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=r"not the name of a part.*remove it"):
        read_scores(tmp_path)
