"""Sets fields of a config from text, as given on a command line."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError


def set_fields(config: ConfigDict, settings: Sequence[str]) -> None:
    """Sets fields of a config from text, each converted to the type of the field.

    Args:
        config: The config, which is changed. A field that is missing because the model was
            converted before the field was introduced is added.
        settings: Settings such as "sampling.steps=25"; the name alone sets a boolean field.

    Raises:
        UserError: There is no such field, or the text is not a value of its type.
    """
    if not settings:
        return
    _add_later_fields(config, settings)
    words = ["", *(f"--config.{setting}" for setting in settings)]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
        values(words)
    except (AttributeError, KeyError) as error:  # with the bare name of the field
        field, *rest = re.findall(r"[\w.]+", str(error).replace("\\n", " "))
        if "does not exist" in str(error):
            field, rest = rest[-1], []
        hint = f" (did you mean {rest[3]!r}?)" if rest[:3] == ["Did", "you", "mean"] else ""
        raise UserError(
            f"the config has no field {field!r}{hint}: configs/i2v_512.py has them all"
        ) from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"--config.{', --config.'.join(settings)}: {error}") from error


def _add_later_fields(config: ConfigDict, settings: Sequence[str]) -> None:
    """Adds the fields of `settings` that are newer than the model, with their defaults."""
    defaults = load_config("i2v_512")
    for setting in settings:
        section, _, field = setting.partition("=")[0].partition(".")
        known, present = (isinstance(of.get(section), ConfigDict) for of in (defaults, config))
        if known and present and field in defaults[section] and field not in config[section]:
            with config.unlocked():
                config[section][field] = defaults[section].get_ref(field)
