# Varnish in front of greendot: /etc/varnish/default.vcl. What is not said here is the default.
# It passes on the name that clients use: list it with `greendot serve --host NAME`.

vcl 4.1;

backend greendot {
    .host = "127.0.0.1";
    .port = "8080";
    # Above keep-alive-ms, or quiet streams are cut.
    .between_bytes_timeout = 60s;
}

sub vcl_recv {
    # Presence is never cached, and no stream waits for another one of the same address.
    return (pass);
}

# Nobody listens, as greendot restarts: an EventSource would never come back from a 503.
sub vcl_backend_error {
    if (bereq.url ~ "^/v1/stream(\?|$)") {
        set beresp.status = 200;
        set beresp.http.Content-Type = "text/event-stream";
        set beresp.http.Cache-Control = "no-store, no-transform";
        # Pages of other origins may read so much too, or it is an error to them.
        if (bereq.http.Origin) {
            set beresp.http.Access-Control-Allow-Origin = bereq.http.Origin;
            set beresp.http.Access-Control-Allow-Credentials = "true";
        }
        set beresp.http.Vary = "Origin";
        synthetic("""event: overloaded
retry: 7000
data: {"reason":"away"}

""");
        return (deliver);
    }
}
