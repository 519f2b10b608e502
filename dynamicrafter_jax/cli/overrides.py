"""Settings of a config from text, as a command line has them."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError


def set_fields(config: ConfigDict, settings: Sequence[str]) -> None:
    """Sets fields of a config from text, each in the type that the field has.

    Args:
        config: Is changed. A field that models converted before lack is added.
        settings: As "sampling.steps=25"; of a field that is true or false, its name sets it.

    Raises:
        UserError: There is no such field, or the text is no value of its type.
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
    """Adds the fields of `settings` that came after the model was converted, by their defaults."""
    defaults = load_config("i2v_512")
    for setting in settings:
        section, _, field = setting.partition("=")[0].partition(".")
        known, present = (isinstance(of.get(section), ConfigDict) for of in (defaults, config))
        if known and present and field in defaults[section] and field not in config[section]:
            with config.unlocked():
                config[section][field] = defaults[section].get_ref(field)
