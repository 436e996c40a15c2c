"""Ingest under faults, in one process and in virtual time: one seed is one run, and replays it.

feed.py      what producers write: late, twice, poisoned, a day ahead
store.py     the memory store behind a network that loses answers, and a primary that loses writes
process.py   one worker process: the real streams.worker.Worker and online_store.ingest.Ingest on a stand-in for Faust
group.py     who reads which partition: joins, leaves, time-outs, zombies
faults.py    what goes wrong, drawn from the seed
run.py       a run from its seed to its verdict, by tests/oracle.py
mutations.py breaks the product on purpose and demands that the runs see it
"""
