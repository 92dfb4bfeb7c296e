"""The evaluation: ``python -m diffguard_pl.test --config ldm.yaml --trainer.devices 8``."""

from .imports import exiting_at_once_after_help, garbage_collection_paused

with garbage_collection_paused():
    from .commands.evaluate import main

if __name__ == "__main__":
    with exiting_at_once_after_help():
        main()
