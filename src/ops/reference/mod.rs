//! Slow and obvious: the specification of every operation.
