"""What file systems are and do: which is a network's, and how a file appears whole."""

from __future__ import annotations

import errno
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


def put_in_place(new: Path, path: Path) -> None:
    """Give a finished file its name; if another process was quicker, its file is as good and stays."""
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        os.rename(new, path)  # a file system without links
