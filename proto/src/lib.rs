//! Wire messages, generated from .proto files, and conversions to and from the model.
