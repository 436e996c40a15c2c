"""What a feed changes in its registry, one sort each: the default one is what was live before."""

from dataclasses import replace

from schemas.features import FEATURES, STATICS, Registry, ctr, dwell_avg
from schemas.windows import DAYS_30, HOUR_MS, HOURS_24, MINUTE_MS, Window

#: A window more, of one kind.
WINDOW_ADDED = Registry((*FEATURES, ctr("ctr_3h", "item", Window("3h", 3 * HOUR_MS, 15 * MINUTE_MS))), STATICS)
#: A window whose tiles are other ones.
HOURLY = Window("24h", 24 * HOUR_MS, HOUR_MS)
WINDOW_CHANGED = Registry(tuple(replace(one, window=HOURLY) if one.window == HOURS_24 else one for one in FEATURES), STATICS)
#: What is said of dwelling for a month, of whom nothing was kept that long.
AGGREGATE_ADDED = Registry((*FEATURES, dwell_avg("user_dwell_avg_30d", "user", DAYS_30)), STATICS)

CHANGES = {"WINDOW_ADDED": WINDOW_ADDED, "WINDOW_CHANGED": WINDOW_CHANGED, "AGGREGATE_ADDED": AGGREGATE_ADDED}
