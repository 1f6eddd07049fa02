"""The putter: puts blocks into Mooncake through its own client, for the daemon.

It is the only package that drives Mooncake's native code, and it never does so in the daemon's
process: a native crash must not end the daemon. It runs inside the store service (`launcher`),
where puts are local copies, or as a child of the daemon (`python -m snapd.putter`), over TCP.
"""
