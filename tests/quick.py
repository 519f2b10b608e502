"""Flags of XLA under which tests run: programs that run once need no optimisation."""


def xla_flags(devices: int) -> str:
    """Returns flags that compile fast and give so many devices; start processes with them."""
    return (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
    )
