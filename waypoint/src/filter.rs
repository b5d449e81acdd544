//! What is done to requests and answers on their way, each filter for itself.
