//! What is counted, written and traced of every request.
