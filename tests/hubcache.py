"""Networks laid out as `hf download` leaves them: blobs, references, and snapshots that link to blobs."""

from hashlib import sha1, sha256
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def keep(cache: Path, repository: str, state: dict[str, Tensor], revision: str = "main") -> Path:
    """Keep a network as a revision of a repository; return the file that its snapshot has."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    content = save(state)
    commit = sha1(content).hexdigest()
    snapshot, blob = folder / "snapshots" / commit, folder / "blobs" / sha256(content).hexdigest()
    for each in (snapshot, blob.parent, folder / "refs"):
        each.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    blob.write_bytes(content)
    path = snapshot / "model.safetensors"
    path.symlink_to(Path("../../blobs") / blob.name)
    return path
