//! A listener that takes so many connections at a time. The others wait in the kernel's queue until one ends: they use
//! no file descriptor of ours, and a deployment goes on beside any number of them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::{AddrListener, Address};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Where a caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller(SocketAddr);

impl Address for Caller {
    type Stream = Connection;
    type Listener = BoundedListener;
}

/// A bound listener with its places.
#[derive(Debug)]
pub struct BoundedListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl BoundedListener {
    /// A listener that has at most so many connections open.
    ///
    /// # Errors
    /// The listener cannot be polled.
    pub fn new(listener: std::net::TcpListener, connections: usize) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            places: Arc::new(Semaphore::new(connections)),
        })
    }
}

impl AddrListener<Connection, Caller> for BoundedListener {
    /// Not supported: a listener is bound, and its places are counted, before the server is made.
    async fn bind_to(_: Caller) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn accept_stream(&self) -> io::Result<(Connection, Caller)> {
        let places = Arc::clone(&self.places);
        let place = places.acquire_owned().await.map_err(io::Error::other)?;
        // Without descriptors this is an error, and the server asks again 50 ms later.
        let (stream, address) = self.listener.accept().await?;
        // Without NODELAY an answer in two writes waits 40 ms for the other side's acknowledgement.
        stream.set_nodelay(true)?;
        let connection = Connection {
            stream,
            _place: place,
        };
        Ok((connection, Caller(address)))
    }

    fn get_local_addr(&self) -> io::Result<Caller> {
        self.listener.local_addr().map(Caller)
    }
}

/// An open connection, which gives its place back when it ends.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
