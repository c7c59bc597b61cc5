"""Registry calls, health and reflection of a real daemon's gateway, and the statuses of what is refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import towpath
from tests.grpc.helpers import code_of, error_of, gateway_of, health_of
from tests.support.deadlines import DEADLINE_S
from towpath.errors import TABLE, Code
from towpath.v1 import channels_pb2, channels_pb2_grpc, registry_pb2, registry_pb2_grpc


@pytest.fixture
def registry(remote: grpc.Channel) -> registry_pb2_grpc.RegistryStub:
    return registry_pb2_grpc.RegistryStub(remote)


def refused(caught: pytest.ExceptionInfo[grpc.RpcError], code: Code) -> None:
    """It failed with the status of the code's row, and the trailer says the same."""
    error = error_of(caught.value)
    assert Code(error.code) is code
    assert code_of(caught.value) is grpc.StatusCode[TABLE[code].grpc]
    assert isinstance(caught.value, grpc.Call)
    assert error.message
    assert caught.value.details() == error.message


def test_a_channel_s_life_from_afar(registry: registry_pb2_grpc.RegistryStub, client: towpath.Client) -> None:
    options = registry_pb2.ChannelOptions(ring_bytes=8192)
    request = registry_pb2.DeclareChannelRequest(name="remote.a", options=options)
    first = registry.DeclareChannel(request)
    assert first.created
    assert (first.channel.name, first.channel.options.ring_bytes) == ("remote.a", 8192)
    assert first.channel.owner == "grpc:anonymous"
    assert not registry.DeclareChannel(request).created
    got = registry.GetChannel(registry_pb2.GetChannelRequest(name="remote.a")).channel
    assert got == first.channel
    listed = registry.ListChannels(registry_pb2.ListChannelsRequest(prefix="remote."))
    assert list(listed.channels) == [got]
    assert client.channel_info("remote.a").ring_bytes == 8192
    registry.UndeclareChannel(registry_pb2.UndeclareChannelRequest(name="remote.a"))
    assert not registry.ListChannels(registry_pb2.ListChannelsRequest(prefix="remote.")).channels


def test_status_tells_of_this_very_gateway(
    registry: registry_pb2_grpc.RegistryStub, client: towpath.Client
) -> None:
    status = registry.GetStatus(registry_pb2.GetStatusRequest())
    [gateway] = [each for each in status.gateways if each.name == "grpc"]
    assert gateway.state == registry_pb2.GATEWAY_STATE_RUNNING
    assert gateway.pid == gateway_of(client).pid


def test_refusals_have_their_status_and_trailer(
    registry: registry_pb2_grpc.RegistryStub, remote: grpc.Channel, channel: str
) -> None:
    channels = channels_pb2_grpc.ChannelsStub(remote)
    publish, declare = channels_pb2.PublishRequest, registry_pb2.DeclareChannelRequest
    with pytest.raises(grpc.RpcError) as caught:
        channels.Publish(publish(channel="nobody.declared", payloads=[b""]))
    refused(caught, Code.CHANNEL_NOT_FOUND)
    with pytest.raises(grpc.RpcError) as caught:
        channels.Publish(publish(channel="not a name", payloads=[b""]))
    refused(caught, Code.INVALID_NAME)
    with pytest.raises(grpc.RpcError) as caught:
        channels.Publish(publish(channel=channel))
    refused(caught, Code.INVALID_ARGUMENT)
    with pytest.raises(grpc.RpcError) as caught:
        next(channels.PublishStream(iter([channels_pb2.PublishStreamRequest(payloads=[b""])])))
    refused(caught, Code.INVALID_NAME)
    with pytest.raises(grpc.RpcError) as caught:
        next(channels.Subscribe(iter([])))
    refused(caught, Code.INVALID_ARGUMENT)
    with pytest.raises(grpc.RpcError) as caught:
        registry.DeclareChannel(declare(name=channel, options=registry_pb2.ChannelOptions(ring_bytes=4096)))
    refused(caught, Code.CHANNEL_CONFLICT)
    with pytest.raises(grpc.RpcError) as caught:
        registry.DeclareChannel(declare(name="x" * 256))
    refused(caught, Code.INVALID_NAME)


@pytest.mark.parametrize("method", ["Channels/Publish", "Registry/DeclareChannel", "Registry/Watch"])
def test_a_request_that_does_not_parse_is_an_invalid_argument(remote: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary: Any = remote.unary_unary(f"/towpath.v1.{method}")
        unary(b"\xff\xff\xff", timeout=DEADLINE_S)
    refused(caught, Code.INVALID_ARGUMENT)


@pytest.mark.parametrize("method", ["PublishStream", "Subscribe"])
def test_a_streamed_request_that_does_not_parse_is_an_invalid_argument(
    remote: grpc.Channel, method: str
) -> None:
    streams: Any = remote.stream_stream(f"/towpath.v1.Channels/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        next(streams(iter([b"\xff\xff\xff"]), timeout=DEADLINE_S))
    refused(caught, Code.INVALID_ARGUMENT)


def test_a_request_above_the_size_bound_is_refused(remote: grpc.Channel, channel: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channels_pb2_grpc.ChannelsStub(remote).Publish(
            channels_pb2.PublishRequest(channel=channel, payloads=[b"x" * (5 << 20)])
        )
    assert code_of(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_remote_peers_may_not_bind_and_not_remove_others_channels(
    registry: registry_pb2_grpc.RegistryStub, channel: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = f"fifo:{tmp_path_factory.mktemp('bind')}/in"
    with pytest.raises(grpc.RpcError) as caught:
        registry.CreateBinding(
            registry_pb2.CreateBindingRequest(channel=channel, url=url, direction=registry_pb2.DIRECTION_IN)
        )
    refused(caught, Code.PERMISSION_DENIED)
    with pytest.raises(grpc.RpcError) as caught:
        registry.UndeclareChannel(registry_pb2.UndeclareChannelRequest(name=channel))
    refused(caught, Code.PERMISSION_DENIED)
    with pytest.raises(grpc.RpcError) as caught:
        registry.GetBinding(registry_pb2.GetBindingRequest(id=1 << 40))
    refused(caught, Code.BINDING_NOT_FOUND)
    assert not registry.ListBindings(registry_pb2.ListBindingsRequest(channel=channel)).bindings


def test_a_message_above_the_channel_s_bound_is_refused_with_its_whole_batch(
    remote: grpc.Channel, client: towpath.Client
) -> None:
    channel = client.declare("test.small", ring_bytes=4096).name
    with client.subscribe(channel) as subscription:
        with pytest.raises(grpc.RpcError) as caught:
            channels_pb2_grpc.ChannelsStub(remote).Publish(
                channels_pb2.PublishRequest(channel=channel, payloads=[b"fits", b"x" * 4096])
            )
        refused(caught, Code.MESSAGE_TOO_LARGE)
        assert subscription.receive_many(10, timeout=0) == []


def test_twenty_watches_are_told_the_state_and_each_change(
    registry: registry_pb2_grpc.RegistryStub, client: towpath.Client
) -> None:
    client.declare("watched.before")
    calls = [registry.Watch(registry_pb2.WatchRequest(), timeout=DEADLINE_S) for _ in range(20)]
    for call in calls:
        names = set()
        for item in call:
            if item.WhichOneof("event") == "current":
                break
            names.add(item.channel_declared.name)
        assert "watched.before" in names
    client.declare("watched.after")
    client.undeclare("watched.before")
    for call in calls:
        declared, undeclared = next(call), next(call)
        assert declared.channel_declared.name == "watched.after"
        assert undeclared.channel_undeclared.name == "watched.before"
        assert undeclared.revision > declared.revision
        call.cancel()


def test_health_says_serving_by_name(remote: grpc.Channel) -> None:
    health = health_of(remote)
    for service in ("", "towpath.v1.Channels", "towpath.v1.Registry"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="towpath.v1.Nothing"))
    assert code_of(caught.value) is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="towpath.v1.Nothing"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_reflection_lists_and_describes_the_services(remote: grpc.Channel) -> None:
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(remote)
    request = reflection_pb2.ServerReflectionRequest
    services, file = reflection.ServerReflectionInfo(
        iter([request(list_services=""), request(file_containing_symbol="towpath.v1.Channels")])
    )
    assert {each.name for each in services.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "towpath.v1.Channels",
        "towpath.v1.Locks",
        "towpath.v1.Registry",
    }
    assert b"PublishStream" in b"".join(file.file_descriptor_response.file_descriptor_proto)
