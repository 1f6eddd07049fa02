"""What the wheel does while its master is dead, as a script for its interpreter; prints JSON.

python client_away.py <master host:port> <metadata URL> <process number of the master>
"""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np
from client_driver import World

world = World("mooncake", sys.argv[1], sys.argv[2])
world.setup_again()
client = world.client
client.put("k", b"value")
os.kill(int(sys.argv[3]), signal.SIGKILL)
address = np.zeros(16, np.uint8).ctypes.data
outcomes = {
    "put": client.put("k", b"x"),
    "upsert": client.upsert("k", b"x"),
    "get": client.get("k").decode(),
    "get_size": client.get_size("k"),
    "is_exist": client.is_exist("k"),
    "batch_is_exist": client.batch_is_exist(["k", "j"]),
    "get_into": client.get_into("k", address, 16),
    "batch_put_from": client.batch_put_from(["k"], [address], [16]),
    "remove": client.remove("k"),
    "batch_remove": client.batch_remove(["k", "j"]),
    "remove_all": client.remove_all(),
    "health_check": client.health_check(),
}
print(json.dumps(outcomes), flush=True)
os._exit(0)  # a polite close would wait for the dead master again
