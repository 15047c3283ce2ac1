"""The shim: a small process of its own around one attempt of a job. It outlives the server. Floor 12.

Standard library only, and of it little, and no other part of this package but names and fail points, so that it starts
soon: ``python -I -S grami_actors/jobs/shim/start.py FOLDER LOCK TREE LIFELINE``, see :mod:`.start`.

What it writes into the folder of the attempt, beside what docs/jobs.md says of run.json, log.* and exit.json:

record.jsonl: one JSON object a line, each with ``at``. ``{"type": "progress", "fraction", "message"}``,
``{"type": "checkpoint", "data"}``, ``{"type": "artifact", "name", "bytes"}``, ``{"type": "ask", "question"}``,
``{"type": "stop", "reason"}`` (the shim began to end the job, whoever wanted it), ``{"type": "dropped", "lines"}``
(the disk was full). A line that is not complete is not there yet.
"""
