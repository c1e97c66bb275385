"""Detour's queries on a navigation mesh, compiled: nearest polygon, corridor, string pulling, sliding, walls.

The rules, the order of visits and the float32 arithmetic are those of `DetourNavMeshQuery.cpp`, because ties and
rounding decide which of two corridors is taken. Points are float32 x, y, z with y up; a polygon is its index, -1 for
none.
"""
