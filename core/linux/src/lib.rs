//! Safe doors to Linux that several programs need: network namespaces, and sequenced-packet sockets that carry
//! descriptors.
//!
//! Nothing here knows what a mesh is. The node proxy and the agent enter pods' namespaces through [`NetNs`] and
//! talk to each other over [`seqpacket`]; the local mesh and the tests build their worlds with both.

pub mod held;
pub mod isolate;
pub mod netns;
pub mod notify;
pub mod seqpacket;

pub use netns::NetNs;
