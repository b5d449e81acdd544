//! What is known of the files: each is parsed once, and its text again only where it is asked for later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use tulle_k8s::{Key, Kind};
use tulle_model::Str;

use super::{Library, Parsed, Step};
use crate::history::sha256;
use crate::source::folder::packed::Packed;
use crate::source::folder::parse::{self, Form};
use crate::source::folder::scan::{File, Scan};
use crate::source::folder::written::{self, Written};

/// A file as it was parsed last.
#[derive(Debug, Clone)]
pub(super) struct Known {
    text: Result<Arc<Packed>, String>,
    /// Of the text, if there is one.
    sha256: Option<Str>,
    pub(super) parsed: Arc<Parsed>,
    /// It was broken, or perhaps cut off, and read a second time.
    pub(super) read_twice: bool,
}

/// The text of a file, as far as it may be kept.
pub(crate) enum Text {
    /// It may.
    Open(String),
    /// It holds keys or the like, which are kept nowhere else.
    Secret,
}

/// Whether a text holds what may not be kept, as far as can be told: a Secret, or a key, also in base64.
fn holds_secret(parsed: &Parsed, text: &str) -> bool {
    let is_secret = |statement: &parse::Statement| statement.key.kind == Kind::Secret;
    parsed.statements.iter().any(is_secret)
        || (parsed.is_broken || parsed.strays.may_be_of(Kind::Secret)) && text.contains("Secret")
        || text.contains("PRIVATE KEY")
        || text.contains(parse::PEM_IN_BASE64)
}

/// How objects were written, by form.
pub(crate) type Texts = BTreeMap<Form, Written>;

impl Known {
    fn read(path: &Str, file: &File) -> Self {
        let (parsed, sha256) = match &file.text {
            Ok(text) => {
                let text = text.text();
                (parse::parse(path, &text), Some(sha256(text.as_bytes())))
            }
            Err(cause) => (parse::unreadable(path, cause), None),
        };
        Self {
            text: file.text.clone(),
            sha256,
            parsed: Arc::new(parsed),
            read_twice: !file.is_fresh,
        }
    }

    fn is_of(&self, file: &File) -> bool {
        match (&self.text, &file.text) {
            (Ok(one), Ok(other)) => Arc::ptr_eq(one, other) || one == other,
            (one, other) => one == other,
        }
    }

    /// Broken, or perhaps cut off, and not looked at a second time yet.
    pub(super) fn is_waited_for(&self) -> bool {
        (self.parsed.is_broken || !self.parsed.strays.is_empty()) && !self.read_twice
    }
}

impl Library {
    /// Parses what changed; says whether a broken file deserves a second look.
    pub(super) fn read(&mut self, scan: &Scan, touched: &mut BTreeSet<Key>, step: &mut Step) -> bool {
        let gone: Vec<Str> = self
            .files
            .keys()
            .filter(|path| !scan.files.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            self.set_file(&path, None, touched, step);
        }
        let mut changed: Vec<(&Str, &File)> = Vec::new();
        for (path, file) in &scan.files {
            match self.files.get(path) {
                Some(known) if !known.is_of(file) => changed.push((path, file)),
                None => changed.push((path, file)),
                Some(known) if known.is_waited_for() => {
                    let known = Known {
                        read_twice: true,
                        ..known.clone()
                    };
                    self.set_file(path, Some(known), touched, step);
                }
                Some(_) => {}
            }
        }
        step.work.parsed += changed.len();
        let read = |(path, file): &(&Str, &File)| Known::read(path, file);
        let read: Vec<Known> = match changed.len() {
            0 | 1 => changed.iter().map(read).collect(),
            _ => changed.par_iter().map(read).collect(),
        };
        let mut read_again = false;
        for ((path, _), mut known) in changed.into_iter().zip(read) {
            known.read_twice |= self.files.get(path).is_some_and(Known::is_waited_for);
            read_again |= known.is_waited_for();
            self.set_file(path, Some(known), touched, step);
        }
        read_again
    }

    fn set_file(&mut self, path: &Str, new: Option<Known>, touched: &mut BTreeSet<Key>, step: &mut Step) {
        let old = self.files.remove(path);
        for known in old.iter().chain(&new) {
            touched.extend(known.parsed.statements.iter().map(|one| one.key.clone()));
        }
        touched.extend(self.index.held(path).cloned());
        self.index.set_file(path, old.as_ref(), new.as_ref());
        if let Some(new) = new {
            self.files.insert(path.clone(), new);
        }
        step.files.entry(path.clone()).or_insert(old);
    }

    /// The text of a file and its SHA-256, if it could be read.
    pub(crate) fn text(&self, path: &Str) -> Option<(Text, &Str)> {
        let known = self.files.get(path)?;
        let text = known.text.as_ref().ok()?.text();
        let text = if holds_secret(&known.parsed, &text) {
            Text::Secret
        } else {
            Text::Open(text)
        };
        Some((text, known.sha256.as_ref()?))
    }

    /// Every file.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Str> {
        self.files.keys()
    }

    /// How the objects of these keys were written, as far as the files they are from say it; and whatever else those say.
    pub(crate) fn written<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Texts {
        let entries: Vec<_> = keys.filter_map(|key| self.entries.get(key)).collect();
        let files: BTreeSet<&Str> = entries.iter().map(|entry| &entry.in_force.file).collect();
        let known = files
            .into_iter()
            .filter_map(|file| self.files.get_key_value(file));
        let known: Vec<(&Str, &Known)> = known.collect();
        let mut texts = Texts::new();
        for (_, known) in &known {
            collect(&known.parsed, &mut texts);
        }
        // What was on record before, and was then defined elsewhere for a while.
        if entries.iter().any(|entry| !texts.contains_key(&entry.form)) {
            let wanted: BTreeSet<&Form> = entries.iter().map(|entry| &entry.form).collect();
            let has = |known: &Known| {
                let mut goods = known.parsed.statements.iter().filter_map(|one| one.good());
                goods.any(|good| good.written.is_none() && wanted.contains(&good.form))
            };
            for (path, known) in known.into_iter().filter(|(_, known)| has(known)) {
                if let Ok(text) = &known.text {
                    collect(&parse::parse(path, &text.text()), &mut texts);
                }
            }
        }
        texts
    }

    /// Drops the texts of objects in force that this step brought: they are on record now, or nobody keeps any.
    pub(crate) fn drop_texts(&mut self, step: &Step) {
        let changed = step.entries.keys().filter_map(|key| self.entries.get(key));
        let mut files: BTreeSet<Str> = changed.map(|entry| entry.in_force.file.clone()).collect();
        files.extend(step.files.keys().cloned());
        if !step.held_anything() {
            // The first record holds what earlier steps brought, too.
            files.extend(self.files.keys().cloned());
        }
        for path in &files {
            let Some(known) = self.files.get_mut(path) else {
                continue;
            };
            let entries = &self.entries;
            let is_kept = |statement: &parse::Statement| {
                let good = statement.good().filter(|good| good.written.is_some());
                let entry = entries.get(&statement.key);
                entry
                    .zip(good)
                    .is_some_and(|(entry, good)| entry.form == good.form)
            };
            if !known.parsed.statements.iter().any(is_kept) {
                continue;
            }
            let statements = &mut Arc::make_mut(&mut known.parsed).statements;
            for statement in statements.iter_mut().filter(|one| is_kept(one)) {
                if let Some(good) = statement.good_mut() {
                    good.written = None;
                }
            }
            // Those that stay, as another file's are on record, must not hold the piece of all.
            let goods = statements.iter_mut().filter_map(parse::Statement::good_mut);
            written::join(goods.filter_map(|good| good.written.as_mut()));
        }
    }
}

fn collect(parsed: &Parsed, texts: &mut Texts) {
    let goods = parsed.statements.iter().filter_map(|statement| statement.good());
    texts.extend(goods.filter_map(|good| Some((good.form, good.written.clone()?))));
}
