"""Diffusion as plain functions of arrays; a model enters only as a callable.

`schedule` defines how much noise each timestep has, `prediction` what a network's output means, and
`loss` what it is trained on. `guidance` combines passes under several conditions, `caches` says
which steps reuse what earlier ones computed, `solvers` take one step and `loop` takes all of them.
"""
