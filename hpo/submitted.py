"""What spark-submit runs: `hpo` with the words that follow, on this machine or on one of the cluster's."""

import json
import os
import sys

# Python looks first in this file's folder, whose names are hpo's own business: run, study, testing.
del sys.path[0]
if os.path.isdir("hpo_code"):
    sys.path.insert(0, os.path.abspath("hpo_code"))  # hpo came along, with the project's code
else:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

arguments = sys.argv[1:]
if note := os.environ.pop("HPO_SUBMITTED", None):
    submitted = json.loads(note)
    # spark-submit makes one stream of standard output and standard error; --json needs one of its own.
    os.dup2(os.open(submitted["stdout"], os.O_WRONLY | os.O_APPEND), 1)
    with open(submitted["pid"], "w") as file:
        file.write(str(os.getpid()))  # signals come from now on
    sys.argv[1:] = submitted["command"]  # how to go on is told in the words that a person has typed

from hpo.cli import main  # noqa: E402

main(arguments)
