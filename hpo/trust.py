"""Which code a worker runs: a store carries code, and whoever can write to it is not to be believed."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo import snapshot as snapshots
from hpo.core.errors import UntrustedCode
from hpo.core.study import Identity

KEY_VARIABLE = "HPO_KEY"  # what a study's driver and its workers share, where they trust each other by it
FILES_SHOWN = 5


def signature(key: str, identity: Identity, sha256: str) -> str:
    """What tells those who have the key that the driver meant this code to run so."""
    document = [identity.study, identity.entry_point, dict(identity.arguments), sha256]
    message = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a worker believes. ``told``: the hash that it was given; ``key``: the one it shares with drivers;
    ``checkout``: the folder of its own copy of the project."""

    told: str | None
    key: str | None
    checkout: Path

    def check(self, identity: Identity, signed: Any, sha256: str, archive: Path) -> None:
        """Raises UntrustedCode unless the archive is the code of this hash, and known, or signed."""
        code = snapshots.read(archive)
        found = snapshots.digest_of(code)
        if found != sha256:
            raise UntrustedCode(
                f"study {identity.study!r} names the code {sha256}, but keeps {found}",
                "somebody else has written into the store; start the study's driver again",
            )
        check_entry_point(identity, code)
        if self.told == sha256 or self._is_signed(identity, signed, sha256):
            return
        # A name may be that of this machine's largest file: what is larger than code is not read.
        small = [path for path in code if snapshots.is_small_file(self.checkout / path)]
        own = {path: (self.checkout / path).read_bytes() for path in small}
        if own != code:
            raise self._refusal(identity, code, own, sha256)

    def _is_signed(self, identity: Identity, signed: Any, sha256: str) -> bool:
        if not self.key or not isinstance(signed, str):
            return False
        return hmac.compare_digest(signature(self.key, identity, sha256).encode(), signed.encode())

    def _refusal(
        self, identity: Identity, code: Mapping[str, bytes], own: Mapping[str, bytes], sha256: str
    ) -> UntrustedCode:
        lines = [f"the code of study {identity.study!r} is not known here: its hash is {sha256}"]
        if entry_file(identity) in own:
            differing = sorted(path for path in code if own.get(path) != code[path])
            more = len(differing) - FILES_SHOWN
            named = ", ".join(differing[:FILES_SHOWN]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"  the checkout {self.checkout} has {snapshots.digest_of(own)}")
            lines.append(f"  different there: {named}")
        else:
            lines.append(f"  {self.checkout} is no checkout of it: it has no {entry_file(identity)}")
        return UntrustedCode(
            "\n".join(lines),
            "start the worker in a checkout with the same code; or say that you know it:"
            f" --snapshot {sha256}; or set the same {KEY_VARIABLE} for the driver and the worker",
        )


def entry_file(identity: Identity) -> str:
    """The file of the study's entry point, below the root of its code."""
    return identity.entry_point.rpartition(":")[0]


def check_entry_point(identity: Identity, code: Mapping[str, bytes]) -> None:
    """Raises UntrustedCode where the entry point or the arguments are none that a driver writes."""
    file, _, name = str(identity.entry_point).rpartition(":")
    hint = "somebody else has written into the store"
    if file not in code or not file.endswith(".py") or not name.isidentifier():
        raise UntrustedCode(
            f"the entry point of study {identity.study!r}, {identity.entry_point!r}, is not in its code", hint
        )
    if not isinstance(identity.arguments, Mapping) or not isinstance(identity.seed, int):
        raise UntrustedCode(f"study {identity.study!r} has arguments or a seed that no driver writes", hint)
