//! A stock SSE server, as axum's documentation has it: a tokio broadcast channel, one task a
//! stream.
//!
//!     peer-axum PORT [THREADS]
//!
//! `GET /v1/stream` is told hello, snapshot and whatever is posted to `/pub`; `GET
//!/v1/presence/{user}` answers a canned record.

use std::convert::Infallible;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{get, post};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

const HELLO: &str = concat!(
    r#"{"stream":"0.1.0123456789abcdef","watching":1,"server_time":1764009600123,"#,
    r#""beat_interval_ms":10000,"offline_after_ms":25000,"keep_alive_ms":15000}"#
);
const SNAPSHOT: &str = concat!(
    r#"{"presence":[{"user":"gaxum00000000000","status":"offline","online":false,"#,
    r#""since":null,"last_active":null}]}"#
);
const RECORD: &str = concat!(
    r#"{"user":"bob","status":"online","online":true,"since":1764009600123,"#,
    r#""last_active":1764009631000}"#
);

type Events = broadcast::Sender<String>;

async fn subscribe(
    State(events): State<Events>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let first = [
        Event::default().event("hello").data(HELLO),
        Event::default().event("snapshot").data(SNAPSHOT),
    ];
    let later = BroadcastStream::new(events.subscribe())
        // A reader that fell behind the channel skips what it lost, as the documentation has it.
        .filter_map(async |event| event.ok())
        .map(|data| Event::default().event("presence").data(data));
    Sse::new(stream::iter(first).chain(later).map(Ok)).keep_alive(KeepAlive::default())
}

async fn publish(State(events): State<Events>, body: String) {
    // Nobody listening is no error here.
    let _ = events.send(body);
}

async fn presence() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], RECORD)
}

async fn serve(port: u16) -> std::io::Result<()> {
    let (events, _) = broadcast::channel::<String>(4_096);
    let app = Router::new()
        .route("/v1/stream", get(subscribe))
        .route("/v1/presence/{user}", get(presence))
        .route("/pub", post(publish))
        .with_state(events);
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    let listener = axum::serve::ListenerExt::tap_io(socket.listen(65_535)?, |conn| {
        // As every server of the comparison.
        let _ = conn.set_nodelay(true);
    });
    println!("listening http=127.0.0.1:{port}");
    axum::serve(listener, app).await
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| args.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (port, threads) = (number(8_080) as u16, number(1));
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?,
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build()?,
    };
    runtime.block_on(serve(port))
}
