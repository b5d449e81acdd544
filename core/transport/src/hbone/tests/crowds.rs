//! Many streams, and peers that only make work.

use super::*;

/// R107: a peer that only makes work is sent away.
#[tokio::test]
async fn a_flood_of_settings_ends_the_connection() {
    let (mut near, far) = duplex(1024 * 1024);
    let connection = tokio::join!(server::handshake(far, &SERVER), async {
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        near.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    });
    let (_handle, mut incoming) = serve(connection.0.unwrap());
    let (mut answers, mut floods) = tokio::io::split(near);
    tasks::spawn("reader", async move {
        while answers.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
    });
    let flood = async { while floods.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.is_ok() {} };
    tokio::join!(flood, async { assert!(incoming.recv().await.is_none()) });
}

/// R114: neighbours of streams that nobody reads live on, however small the frames.
#[tokio::test]
async fn unread_small_frames_do_not_kill_the_neighbours() {
    let mut pair = Pair::new().await;
    let mut stalled = Vec::new();
    for _ in 0..199 {
        let (client, server) = pair.tunnel().await;
        let (reader, mut writer) = client.split();
        for _ in 0..20 {
            writer.write_chunk(Bytes::from_static(b"x")).await.unwrap();
        }
        stalled.push((reader, writer, server));
    }
    let (mut client, mut server) = pair.tunnel().await;
    client.write_all(b"neighbour").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"neighbour");
}
