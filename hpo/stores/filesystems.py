"""Is this path on a network file system?"""

from __future__ import annotations

import os
from pathlib import Path

NETWORK = frozenset(
    """
    9p acfs afs beegfs ceph cifs coda fuse.ceph fuse.gcsfuse fuse.glusterfs fuse.goofys fuse.rclone fuse.s3fs
    fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs pvfs2 smb2 smb3 smbfs virtiofs wekafs
    """.split()  # noqa: SIM905
)


def network_filesystem(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The kind of network file system that ``path`` is on, None for a local one or where nobody can tell.

    ``mounts``: the kernel's table of mounts, one ``device point kind options`` a line; the longest mount
    point above the path decides, the later of equals.
    """
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # not Linux
        return None
    place = os.path.realpath(path)
    found, kind = "", None
    for line in lines:
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ")
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(found):
            found, kind = point, fields[2]
    return kind if kind in NETWORK else None
