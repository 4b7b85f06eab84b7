"""Rate limits: a bucket of one process, and one shared across workers and nodes."""

from mesh.ratelimit.allocator import FORGET, Allocator, Branch, Bucket
from mesh.ratelimit.bucket import TokenBucket
from mesh.ratelimit.share import Grant, Report, Share

__all__ = ["FORGET", "Allocator", "Branch", "Bucket", "Grant", "Report", "Share", "TokenBucket"]
