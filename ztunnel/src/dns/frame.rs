//! Messages on a stream: two bytes of length before each (RFC 1035 section 4.2.2).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// When the stream fails, or ends within a message.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message, in one segment where it fits.
///
/// # Errors
/// When the stream fails, or the message is longer than 65,535 bytes.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_follow_each_other() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        write(&mut near, b"one").await.unwrap();
        write(&mut near, b"").await.unwrap();
        drop(near);
        assert_eq!(read(&mut far).await.unwrap(), Some(b"one".to_vec()));
        assert_eq!(read(&mut far).await.unwrap(), Some(Vec::new()));
        assert_eq!(read(&mut far).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_message_failed() {
        assert!(read(&mut &b"\0\x05abc"[..]).await.is_err());
        assert!(read(&mut &b"\0"[..]).await.is_err());
    }

    #[tokio::test]
    async fn what_has_no_length_is_not_written() {
        assert!(write(&mut tokio::io::sink(), &[0; 65_536]).await.is_err());
    }
}
