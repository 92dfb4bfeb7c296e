"""The evaluation: ``python -m diffguard_pl.test --config ldm.yaml --trainer.devices 8``."""

from .imports import garbage_collection_paused

with garbage_collection_paused():
    from .commands.evaluate import main

if __name__ == "__main__":
    main()
