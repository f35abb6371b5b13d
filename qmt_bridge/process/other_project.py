"""Another project of the package index has our import name: its files and ours cannot lie in one folder.

It is the distribution ``qmt-bridge``, ours is ``qmt-bridge-gateway``. The one that is installed last replaces
``qmt_bridge/__init__.py`` of the other, and its folder ``client`` hides our module of that name.
"""

from __future__ import annotations

NAME = "qmt-bridge"
MEND = "pip uninstall qmt-bridge qmt-bridge-gateway, then pip install qmt-bridge-gateway"
MIXED = f"the package qmt_bridge is mixed with that of another project, {NAME}, which has the same import name: {MEND}"
