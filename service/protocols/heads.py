"""What the heads of inference requests have in common, whatever the protocol: length, time limit, priority, request
id."""

from foldserve.service.codecs.compression import encoding_of
from foldserve.service.codecs.protocol import Options
from foldserve.service.inference.body_budget import BodyTooLarge
from foldserve.service.inference.context import RequestContext, allowed_s, content_length, priority_of
from foldserve.service.inference.plan import RequestHead, RequestPlan, Target


def make_head(
    context: RequestContext, target: Target, plan: RequestPlan, options: Options = ()
) -> RequestHead:
    """The head of a request that this plan is for. Raises: BadRequest, BodyTooLarge, UnsupportedMediaType."""
    headers = context.headers
    encoding = encoding_of(headers.get("content-encoding"))
    timeout_ms = headers.get("x-timeout-ms")
    if timeout_ms is not None:
        allowed_s(timeout_ms, None)  # raises for an empty one too
    length = content_length(headers.get("content-length"))
    if length > plan.limit.nbytes:
        raise BodyTooLarge.than(plan.limit.nbytes, plan.limit.setting, plan.reads.shorter, length)
    request_id = context.request_id.encode()
    timeout = (timeout_ms or "").encode("latin-1")
    priority = priority_of(headers.get("x-priority"))
    return RequestHead(target, plan, length, request_id, timeout, options, encoding, priority)
