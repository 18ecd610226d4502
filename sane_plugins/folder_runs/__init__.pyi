from .content import NetworkContent
from .jobs import JOBS, CheckJob, EmbedJob, FingerprintJob, FolderJob, PredictJob
from .manifest import ListedNetwork, Manifest, Part, Shard, plan_shards, read_manifest
from .network_worker import NetworkRows, NetworkWorker, StartWorker
from .read_fingerprints import read_fingerprints
from .run_job import RunOptions, RunResult, run_job

__all__ = [
    "JOBS",
    "CheckJob",
    "EmbedJob",
    "FingerprintJob",
    "FolderJob",
    "ListedNetwork",
    "Manifest",
    "NetworkContent",
    "NetworkRows",
    "NetworkWorker",
    "Part",
    "PredictJob",
    "RunOptions",
    "RunResult",
    "Shard",
    "StartWorker",
    "plan_shards",
    "read_fingerprints",
    "read_manifest",
    "run_job",
]
