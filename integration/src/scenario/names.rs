//! Name servers of pods fail in every way there is.

use std::time::Duration;

use tokio::time::Instant;
use tulle_world::Pod;

use super::{Figure, Run, Scale, Scenario, scenario};
use crate::names::{LIE, Mood, Moody, OUTSIDE, SERVFAIL, TTL, exchange_udp, said, two_resolvers};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F20",
    760,
    "name servers are dead, slow, failing, denying, cutting or lying; names of one pod never go to another's",
    f20,
)];

/// For how long after its time an answer is told, while no server says anything.
const STALE_MAX: Duration = Duration::from_secs(600);
/// Names that are known before a server fails, and as many that are not.
const NAMES: usize = 5;
/// A question whose server says nothing is answered within this.
const ANSWERED_WITHIN: Duration = Duration::from_secs(6);

const MOODS: [(&str, Mood); 6] = [
    ("dead", Mood::Dead),
    ("servfail", Mood::Fails),
    ("slow", Mood::Slow),
    ("hostile", Mood::Lies),
    ("cut", Mood::Truncates),
    ("nxdomain", Mood::Denies),
];

/// What is right for a name that was known, or was not, while its server is in a mood.
fn is_right(mood: Mood, known: bool, reply: Option<&[u8]>) -> bool {
    let Some(reply) = reply else { return false };
    match (mood, said(Some(reply.to_vec()))) {
        // It answers at last, and has the last word.
        (Mood::Slow, Some((0, address))) => address == Some(OUTSIDE),
        (Mood::Slow, code) => !known && code == Some((SERVFAIL, None)),
        (Mood::Truncates, Some((0, None))) => reply[2] & 2 == 2,
        (Mood::Denies, code) => code == Some((crate::names::NXDOMAIN, None)),
        (_, Some((0, address))) => known && address == Some(OUTSIDE),
        (_, code) => !known && code == Some((SERVFAIL, None)),
    }
}

/// Asks many names at once: how many were answered as they should be, how many with the lie, and the longest wait.
async fn ask_all(pod: &Pod, names: Vec<String>, mood: Mood, known: bool) -> (usize, usize, Duration) {
    let asking = names.into_iter().map(|name| {
        let (namespace, server) = (pod.namespace().clone(), std::net::Ipv4Addr::new(198, 51, 100, 53));
        tokio::task::spawn_blocking(move || {
            let asked = Instant::now();
            let reply = exchange_udp(&namespace, server, &name);
            (reply, asked.elapsed())
        })
    });
    let (mut right, mut lies, mut longest) = (0, 0, Duration::ZERO);
    for answer in asking.collect::<Vec<_>>() {
        let (reply, took) = answer.await.unwrap();
        right += usize::from(is_right(mood, known, reply.as_deref()));
        let address = said(reply).and_then(|(_, address)| address);
        lies += usize::from(address == Some(LIE));
        longest = longest.max(took);
    }
    (right, lies, longest)
}

fn names(what: &str, mood: &str) -> Vec<String> {
    (0..NAMES)
        .map(|n| format!("{what}{n}-{mood}.web.example"))
        .collect()
}

fn f20(scale: Scale) -> Run {
    Box::pin(async move {
        let (mut mesh, [web, job], [server, other]) = two_resolvers().await;
        let (moody, others) = (Moody::start(&server), Moody::start(&other));
        mesh.start().await;
        mesh.captured(&[&web, &job]).await;
        let mut figure = Figure::new("F20");
        let (mut lies, mut longest) = (0, Duration::ZERO);
        for (name, mood) in MOODS {
            moody.becomes(Mood::Answers);
            let (known, _, _) = ask_all(&web, names("known", name), Mood::Answers, true).await;
            moody.becomes(mood);
            others.becomes(mood);
            let (kept, first, waited) = ask_all(&web, names("known", name), mood, true).await;
            let (plain, second, longer) = ask_all(&web, names("new", name), mood, false).await;
            // Another pod's server knows nothing of these names, and is not asked for them.
            let foreign: Vec<_> = (0..NAMES).map(|n| format!("own{n}-{name}.job.example")).collect();
            let (_, third, _) = ask_all(&job, foreign, mood, false).await;
            lies += first + second + third;
            longest = longest.max(waited).max(longer);
            let right = known + kept + plain;
            figure = figure.expect(name, format!("{right}/{}", 3 * NAMES), right == 3 * NAMES, "all");
        }
        let told_elsewhere = |server: &Moody, suffix: &str| {
            let asked = server.asked();
            asked.iter().filter(|name| !name.ends_with(suffix)).count() as u64
        };
        let leaks = told_elsewhere(&moody, ".web.example") + told_elsewhere(&others, ".job.example");
        let figure = figure
            .within("longest_answer", longest, ANSWERED_WITHIN)
            .none("lies_believed", lies as u64)
            .none("wrong_resolver_leaks", leaks);
        let (served, ended) = stale_for(
            &web,
            &moody,
            scale.pick(TTL / 4, TTL + STALE_MAX + 2 * ANSWERED_WITHIN),
        )
        .await;
        let bound = TTL + STALE_MAX + ANSWERED_WITHIN;
        let holds = served <= bound && ended == (scale == Scale::Full);
        figure.expect(
            "stale_served_for",
            format!("{}s", served.as_secs()),
            holds,
            &format!("≤ {}s, and no longer", bound.as_secs()),
        )
    })
}

/// How long after its last answer a dead server's name was told, as far as that was watched, and whether it ended.
async fn stale_for(pod: &Pod, server: &Moody, watched: Duration) -> (Duration, bool) {
    server.becomes(Mood::Answers);
    let name = || vec!["old.web.example".to_owned()];
    ask_all(pod, name(), Mood::Answers, true).await;
    server.becomes(Mood::Dead);
    let (last_answer, mut served) = (Instant::now(), Duration::ZERO);
    while last_answer.elapsed() < watched {
        let (told, ..) = ask_all(pod, name(), Mood::Dead, true).await;
        if told == 0 {
            return (served, true);
        }
        served = last_answer.elapsed();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    (served, false)
}
