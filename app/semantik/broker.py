"""Is Redis there? Asked before Celery is, whose own connections retry for up to 20 s before they say no."""

from __future__ import annotations

from typing import Any

from semantik.exceptions import BrokerUnavailable

#: For a connection and for an answer; a person waits for this.
SECONDS = 3.0


def client(url: str, tls: dict[str, Any] | None, seconds: float = SECONDS) -> Any:
    """Return a Redis client for `url` that tries once, `tls` being Celery's broker_use_ssl."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        **(tls or {} if url.startswith("rediss://") else {}),
    )


def reach(app: Any) -> None:
    """Raise BrokerUnavailable within seconds unless the broker and the result backend of `app` answer."""
    import redis

    servers = {app.conf.broker_url: app.conf.broker_use_ssl}
    servers.setdefault(app.conf.result_backend, app.conf.redis_backend_use_ssl)
    for url, tls in servers.items():
        try:
            with client(url, tls) as server:
                server.ping()
        except redis.exceptions.RedisError as error:
            raise BrokerUnavailable(f"Redis cannot be reached ({' '.join(str(error).split())})") from error


def slot_queue(slot: str) -> str:
    """Return the queue that the worker of `slot` (host:n) alone consumes."""
    host, _, number = slot.rpartition(":")
    return f"slot.{host}.{number}"


def describe(error: BaseException) -> str:
    """Return what the log says of a Redis that does not serve: it is away, full, or refuses."""
    import redis

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, redis.exceptions.OutOfMemoryError):
            return "redis full: it refuses what needs memory until there is some; raise redis_memory_max"
        if isinstance(seen, redis.exceptions.ResponseError):
            return "redis refuses"
        seen = seen.__cause__ or seen.__context__
    return "redis away"
