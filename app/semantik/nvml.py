"""What NVIDIA's driver says of one GPU, through its management library (NVML) and NVIDIA's own binding.

Nothing here judges: `semantik.health` does. Nothing here is for a process that computes: a child of the pool
reads what its parent has noted. The binding (nvidia-ml-py) is imported with the first GPU that is opened.

Sources: NVML's reference, https://docs.nvidia.com/deploy/nvml-api/, for what is told of which card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from semantik.exceptions import GpuLost, GpuSilent

#: What CUDA_VISIBLE_DEVICES must look like: a card's UUID, or that of a part of a card (MIG).
UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
#: nvmlComputeMode_t: any process may compute, nobody, one process at a time.
COMPUTE_SHARED, COMPUTE_PROHIBITED, COMPUTE_EXCLUSIVE = 0, 2, 3
#: The Xid after which a card that answers "unknown error" is gone.
OFF_THE_BUS = 79

# Answers that mean that the card, its driver or this user's rights have no such value: NOT_SUPPORTED,
# NO_PERMISSION, FUNCTION_NOT_FOUND (an older driver), NO_DATA, and versions of a structure.
_NONE = (3, 4, 13, 21, 25, 26)
# NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND: this GPU cannot compute any more.
_LOST = (6, 15, 16, 28)
_UNKNOWN, _LIBRARY_NOT_FOUND, _TIMEOUT = 999, 12, 10
# The event belongs to the whole card (no instance of MIG).
_WHOLE = 0xFFFFFFFF
# Events taken in one look: a card in trouble may send the same one over and over.
_EVENTS = 64


class NoLibrary(Exception):
    """There is no libnvidia-ml.so.1: no driver is installed on this host."""


@dataclass(frozen=True)
class Reading:
    """One look at a GPU. None is what the card does not have, or its driver does not tell.

    Of a part of a card (MIG), memory and processes are the part's own, all else is the card's.
    """

    uncorrected_volatile: int | None = None  # uncorrectable ECC errors since the driver's start
    uncorrected_aggregate: int | None = None  # the same in the card's whole life
    remap_pending: bool | None = None  # a row of memory is replaced at the next reset (Ampere and newer)
    remap_failed: bool | None = None  # no spare row is left
    retirement_pending: bool | None = None  # a page is given up at the next reset (before Ampere)
    temperature: int | None = None  # degrees Celsius
    clock_reasons: int | None = None  # bits of nvmlClocksEventReasons: what holds the clocks down
    memory_bytes: int | None = None
    compute_mode: int | None = None  # COMPUTE_*
    processes: tuple[int, ...] | None = None  # that compute on it, by the host's process ids
    sm_mhz: int | None = None
    power_watts: float | None = None


class Gpu:
    """One GPU, open until `close`. Not for two threads at once."""

    def __init__(self, uuid: str) -> None:
        """Find the GPU. Raises NoLibrary, GpuLost where it is not there, GpuSilent as `read` does."""
        try:
            import pynvml
        except ModuleNotFoundError:
            raise NoLibrary("nvidia-ml-py is not installed") from None
        self._nvml: Any = pynvml
        self.uuid = uuid
        self._off_the_bus = False
        self._events: Any = None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == _LIBRARY_NOT_FOUND:
                raise NoLibrary("there is no libnvidia-ml.so.1") from None
            raise self._meaning(error) from error
        try:
            self._part = pynvml.nvmlDeviceGetHandleByUUID(uuid)  # a MIG device's handle, or the card's
            self._card, self._instance = self._whole(uuid)
            self._listen()
        except pynvml.NVMLError as error:
            self.close()
            raise self._meaning(error) from error

    def _whole(self, uuid: str) -> tuple[Any, int | None]:
        """Return the card's handle, and the number of the part that this is (its GPU instance)."""
        if not uuid.startswith("MIG-"):
            return self._part, None
        instance = int(self._nvml.nvmlDeviceGetGpuInstanceId(self._part))
        return self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._part), instance

    def _listen(self) -> None:
        """Ask for the card's Xid events from now on, where the driver has them."""
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._card, nvml.nvmlEventTypeXidCriticalError, self._events)
        except nvml.NVMLError as error:
            self._forget_events()
            if error.value not in _NONE:
                raise

    def close(self) -> None:
        """Let go of the driver."""
        nvml = self._nvml
        self._forget_events()
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError:
            return  # of a card that is gone

    def _forget_events(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            try:
                self._nvml.nvmlEventSetFree(events)
            except self._nvml.NVMLError:
                return

    def xids(self) -> list[int]:
        """Return the numbers of the Xid events that came since the last look; does not wait.

        One that names another part of the card (MIG) is not this GPU's.
        """
        nvml, found = self._nvml, list[int]()
        while self._events is not None and len(found) < _EVENTS:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError as error:
                if error.value == _TIMEOUT:
                    break
                if error.value in _NONE:
                    self._forget_events()
                    break
                raise self._meaning(error) from error
            if self._instance is None or event.gpuInstanceId in (_WHOLE, self._instance):
                found.append(int(event.eventData))
        self._off_the_bus = self._off_the_bus or OFF_THE_BUS in found
        return found

    def read(self) -> Reading:
        """Look at the GPU. Raises GpuLost, and GpuSilent where the driver does not answer for it."""
        nvml = self._nvml
        uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        ecc = "nvmlDeviceGetTotalEccErrors"
        rows = self._ask("nvmlDeviceGetRemappedRows")
        retiring = self._ask("nvmlDeviceGetRetiredPagesPendingStatus")
        # The newer names first: an older driver does not have them, a coming one may not have the others.
        temperature = self._first(
            ("nvmlDeviceGetTemperatureV", nvml.NVML_TEMPERATURE_GPU),
            ("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        )
        reasons = self._first(
            ("nvmlDeviceGetCurrentClocksEventReasons",), ("nvmlDeviceGetCurrentClocksThrottleReasons",)
        )
        memory = self._ask("nvmlDeviceGetMemoryInfo", of=self._part)
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", of=self._part)
        power = self._ask("nvmlDeviceGetPowerUsage")
        return Reading(
            uncorrected_volatile=self._ask(ecc, uncorrected, nvml.NVML_VOLATILE_ECC),
            uncorrected_aggregate=self._ask(ecc, uncorrected, nvml.NVML_AGGREGATE_ECC),
            remap_pending=None if rows is None else bool(rows[2]),
            remap_failed=None if rows is None else bool(rows[3]),
            retirement_pending=None if retiring is None else bool(retiring),
            temperature=temperature,
            clock_reasons=reasons,
            memory_bytes=None if memory is None else int(memory.total),
            compute_mode=self._ask("nvmlDeviceGetComputeMode"),
            processes=None if processes is None else tuple(int(process.pid) for process in processes),
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            power_watts=None if power is None else power / 1000,  # NVML says milliwatts
        )

    def _first(self, *calls: tuple[Any, ...]) -> Any:
        for function, *arguments in calls:
            answer = self._ask(function, *arguments) if hasattr(self._nvml, function) else None
            if answer is not None:
                return answer
        return None

    def _ask(self, function: str, *arguments: Any, of: Any = None) -> Any:
        """Return NVML's answer, None where there is none to be had."""
        try:
            return getattr(self._nvml, function)(self._card if of is None else of, *arguments)
        except self._nvml.NVMLError as error:
            if error.value in _NONE:
                return None
            raise self._meaning(error) from error

    def _meaning(self, error: Any) -> Exception:
        """Return what an error of NVML says of this GPU."""
        if error.value in _LOST or (error.value == _UNKNOWN and self._off_the_bus):
            return GpuLost(f"GPU {self.uuid} is not there ({error})")
        return GpuSilent(f"the driver does not answer for GPU {self.uuid} ({error})")
