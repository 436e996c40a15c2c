"""The registry of 32 features that rank benchmarks serve: 20 of an item, then 12 of a user."""

from schemas.aggregates import ITEM, USER
from schemas.features import (
    FEATURES,
    STATICS,
    Registry,
    category,
    dwell_avg,
    dwell_per_impression,
    idle_hours,
    impressions,
)
from schemas.windows import DAYS_30, HOUR_1, HOURS_24

MORE = (
    impressions("impressions_30d", ITEM, DAYS_30),
    dwell_avg("dwell_avg_1h", ITEM, HOUR_1),
    dwell_avg("dwell_avg_30d", ITEM, DAYS_30),
    dwell_per_impression("dwell_per_impression_1h", ITEM, HOUR_1),
    dwell_per_impression("dwell_per_impression_24h", ITEM, HOURS_24),
    dwell_per_impression("dwell_per_impression_30d", ITEM, DAYS_30),
    idle_hours("item_idle_hours", ITEM),
    category("language", ITEM, "language", ("de", "en", "es", "fr")),
    dwell_per_impression("user_dwell_per_impression_24h", USER, HOURS_24),
    category("user_locale", USER, "locale", ("de", "en", "es", "fr")),
    category("user_region", USER, "region", ("DE", "ES", "FR", "US")),
)
#: The default lines and MORE; features of the model that chose the item are kept in records, but are no columns.
THIRTY_TWO = Registry(tuple(feature for kind in (ITEM, USER) for feature in FEATURES + MORE if feature.kind == kind), STATICS)
ITEMS_COLUMNS = sum(feature.kind == ITEM for feature in THIRTY_TWO.features)
