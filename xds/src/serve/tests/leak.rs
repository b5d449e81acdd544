//! Nothing is left of clients that came and went.

use super::*;

/// Tasks of the whole test: server, connections, streams.
fn tasks_alive() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn a_thousand_clients_that_come_and_go_leave_no_task_behind() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    server.set(ResourceType::Address, "a", b"one");
    let asking = || first("n1", ResourceType::Address);
    // The first one makes what is made once.
    drop(server.connect(&token, asking()).await.unwrap());
    until(|| server.clients.is_empty()).await;
    let before = tasks_alive();
    for cycle in 0..1_000 {
        let mut client = server.connect(&token, asking()).await.unwrap();
        if cycle % 3 == 0 {
            // Some go in the middle of an answer, some after it, some before the first one.
            client.expect(&[("a", b"one")], &[]).await;
        } else if cycle % 3 == 1 {
            client.receive().await.unwrap();
        }
        drop(client);
        until(|| server.clients.len() < 2).await;
    }
    until(|| server.clients.is_empty()).await;
    until(|| tasks_alive() <= before).await;
    assert_eq!(server.metrics.streams.get(), 0);
}
