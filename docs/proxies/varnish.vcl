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
