//! A world of nodes and pods in network namespaces of one machine, for the local mesh and for tests.
//!
//! ```text
//!   node n1 ──┐                      ┌── node n2        each box is a network namespace
//!    │ │      └──── wire (bridge) ───┘     │ │          the recorder listens on the wire
//!   pods          control ──┘             pods
//! ```
//! Everything lives as long as the [`World`] value: namespaces are held by descriptors and no mount, file outside of
//! the world's folder, route or rule of the host is touched.

mod generations;
mod links;
mod mesh;
mod pod;
mod process;
mod recorder;
mod services;
mod topology;

pub use generations::Generation;
pub use mesh::{Component, Folders, Mesh, MeshError};
pub use pod::Pod;
pub use process::{Process, ProcessError};
pub use recorder::{Recorded, Recorder, Sought};
pub use services::{Backend, VirtualService};
pub use topology::{CONTROL, Node, World, WorldError};
