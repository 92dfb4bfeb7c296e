"""The evaluation: ``python -m diffguard_pl.test --config ldm.yaml --trainer.devices 8``."""

from .commands.evaluate import main

if __name__ == "__main__":
    main()
