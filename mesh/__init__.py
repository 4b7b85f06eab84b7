"""What the mesh decides and says: pure functions and state machines over bytes, events and `now`.

Nothing here opens a socket, reads a clock, draws a random number or logs; callers pass those in and act on
what comes back. The rooms `noded` and `controller` are shells around this one.
"""
