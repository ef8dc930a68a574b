"""The checker of annotations that pytest switches on for the whole package: shapes, dtypes, plain types."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where a float is asked for, an int will do
