"""Rate limits: a bucket of one process, one for each value of a header, and one shared across workers and nodes."""

from mesh.ratelimit.allocator import Allocator, Branch, Bucket
from mesh.ratelimit.bucket import TokenBucket
from mesh.ratelimit.keyed import KeyedBuckets
from mesh.ratelimit.share import Grant, Report, Share

__all__ = ["Allocator", "Branch", "Bucket", "Grant", "KeyedBuckets", "Report", "Share", "TokenBucket"]
