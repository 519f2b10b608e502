"""Diffusion as plain functions of arrays; a model enters only as a callable.

`schedule` says how much noise each timestep holds, `prediction` what a network's output means,
`loss` what it is trained on, `guidance` combines passes under several conditions, `solver` takes
one step and `loop` all of them.
"""
