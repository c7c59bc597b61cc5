"""From a binding's URL to the adapter that carries it: the one place that knows every adapter.

To add a mechanism: its scheme in ``towpath.bindings.schemes``, and a maker here. A test holds the two lists
against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from towpath.bindings import FIFO, MQ, PIPE, SHM, SIGNAL, SYSV, UNIX, check_options, parse_command, parse_url
from towpath.errors import NotSupported
from towpath.model import BindingInfo
from towpath_broker.gateways.bridge.adapters.fifo import FifoAdapter
from towpath_broker.gateways.bridge.adapters.mq import MqAdapter
from towpath_broker.gateways.bridge.adapters.pipe import PipeAdapter
from towpath_broker.gateways.bridge.adapters.signal import SignalAdapter
from towpath_broker.gateways.bridge.adapters.sysv import SysvAdapter
from towpath_broker.gateways.bridge.adapters.unix import UnixAdapter
from towpath_broker.gateways.bridge.inotify import PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.ports import Adapter, Carrier
from towpath_broker.gateways.bridge.report import Tally


@dataclass(frozen=True, slots=True)
class Site:
    """What an adapter is given to work with.

    Attributes:
        info: the binding's definition.
        place: its URL's place.
        carrier: the channel.
        tally: the binding's account.
        watcher: the bridge's.
        keeping: what of the binding outlives the bridge.
    """

    info: BindingInfo
    place: str
    carrier: Carrier
    tally: Tally
    watcher: PathWatcher
    keeping: BindingKeeping


def _fifo(site: Site) -> Adapter:
    options = FIFO.parse_options(site.info.options)
    return FifoAdapter(
        site.place, site.info.direction, options, site.carrier, site.tally, site.watcher, site.keeping
    )


def _pipe(site: Site) -> Adapter:
    options = PIPE.parse_options(site.info.options)
    argv = parse_command(site.place)
    return PipeAdapter(
        argv, site.info.direction, options, site.carrier, site.tally, channel=site.info.channel
    )


def _mq(site: Site) -> Adapter:
    options = MQ.parse_options(site.info.options)
    return MqAdapter(
        site.place, site.info.direction, options, site.carrier, site.tally, site.watcher, site.keeping
    )


def _sysv(site: Site) -> Adapter:
    options = SYSV.parse_options(site.info.options)
    return SysvAdapter(site.place, site.info.direction, options, site.carrier, site.tally, site.keeping)


def _signal(site: Site) -> Adapter:
    options = SIGNAL.parse_options(site.info.options)
    return SignalAdapter(
        site.place,
        site.info.direction,
        options,
        site.carrier,
        site.tally,
        site.keeping,
        owner=site.info.owner,
    )


def _shm(site: Site) -> Adapter:
    try:
        from towpath_broker.gateways.bridge.adapters.shm import ShmAdapter
    except ImportError:
        raise NotSupported(
            "shm: bindings need the C extension", hint="install from a wheel, or with gcc"
        ) from None
    options = SHM.parse_options(site.info.options)
    return ShmAdapter(site.place, site.info.direction, options, site.carrier, site.tally, site.keeping)


def _unix(site: Site) -> Adapter:
    options = UNIX.parse_options(site.info.options)
    return UnixAdapter(
        site.place, site.info.direction, options, site.carrier, site.tally, site.watcher, site.keeping
    )


MAKERS: Final[dict[str, Callable[[Site], Adapter]]] = {
    "fifo": _fifo,
    "pipe": _pipe,
    "mq": _mq,
    "sysv": _sysv,
    "signal": _signal,
    "shm": _shm,
    "unix": _unix,
}


def make_adapter(
    info: BindingInfo, carrier: Carrier, tally: Tally, watcher: PathWatcher, keeping: BindingKeeping
) -> Adapter:
    """Make the adapter that a binding's URL names.

    Raises:
        InvalidArgument, NotSupported, BindingFailed: the definition is not one that this version can carry
            out.
    """
    scheme, place = parse_url(info.url)
    check_options(scheme, info.direction, info.options)
    return MAKERS[scheme](Site(info, place, carrier, tally, watcher, keeping))
