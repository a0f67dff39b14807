from lit_depth.integrations import old_wandb


def log_to(trainer, function, result, folder):
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            getattr(old_wandb, function)(logger, result, folder)
