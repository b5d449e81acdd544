//! What signs, and what is believed, at one moment.

use std::sync::Arc;

use tulle_model::Str;
use x509_parser::pem::Pem;

use crate::ca::root::Root;

/// A signer with the certificates to show beside its own leaves.
#[derive(Debug, Clone)]
pub struct Material {
    /// Certificate and key that sign. `None` for a root that is only believed any more.
    pub signer: Option<Arc<Root>>,
    /// Certificates between leaf and root, from the leaf upwards, PEM each.
    pub intermediates: Vec<Str>,
    /// PEM of the roots that vouch for the signer.
    pub anchors: Str,
}

impl Material {
    /// A root that signs by itself.
    #[must_use]
    pub fn of_root(root: Root) -> Self {
        Self {
            anchors: root.certificate_pem().clone(),
            intermediates: Vec::new(),
            signer: Some(Arc::new(root)),
        }
    }
}

/// What the authority works with until the next change.
#[derive(Debug, Clone)]
pub struct Issuing {
    /// Signs.
    pub signer: Arc<Root>,
    /// Shown after each leaf.
    pub intermediates: Vec<Str>,
    /// PEM of everything believed, each root once.
    pub bundle: Str,
    /// Counts the changes of the bundle.
    pub generation: u64,
}

impl Issuing {
    /// A root that signs by itself and is believed alone.
    #[must_use]
    pub fn of_root(root: Root) -> Self {
        Self {
            bundle: root.certificate_pem().clone(),
            signer: Arc::new(root),
            intermediates: Vec::new(),
            generation: 1,
        }
    }

    /// The chain of a leaf, PEM: leaf, then the intermediates.
    #[must_use]
    pub fn chain(&self, leaf: &str) -> String {
        let mut chain = leaf.to_owned();
        for one in &self.intermediates {
            join(&mut chain, one);
        }
        chain
    }

    /// The same with the roots at its end, for a client that knows only the hash of one.
    #[must_use]
    pub fn chain_with_roots(&self, leaf: &str) -> String {
        let mut chain = self.chain(leaf);
        join(&mut chain, &self.bundle);
        chain
    }
}

/// Every certificate of these texts once, in order.
#[must_use]
pub fn bundle<'a>(texts: impl IntoIterator<Item = &'a str>) -> Str {
    let mut all = String::new();
    let mut known: Vec<Vec<u8>> = Vec::new();
    for text in texts {
        for (der, pem) in certificates(text) {
            if !known.contains(&der) {
                join(&mut all, &pem);
                known.push(der);
            }
        }
    }
    all.into()
}

/// The certificates of a PEM text: DER, and PEM of one block.
#[must_use]
pub fn certificates(text: &str) -> Vec<(Vec<u8>, String)> {
    let blocks = Pem::iter_from_buffer(text.as_bytes()).filter_map(Result::ok);
    blocks
        .filter(|block| block.label == "CERTIFICATE")
        .map(|block| (block.contents.clone(), encode(&block.contents)))
        .collect()
}

/// One certificate as PEM.
fn encode(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn join(text: &mut String, more: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(more);
}
