# greendot in an empty image: one static program, certificates of authorities, a folder for data.
#
#   docker build --build-arg GREENDOT_COMMIT="$(git rev-parse HEAD)" --tag greendot .
#
# docs/deploy/compose/compose.yaml runs it behind nginx, docs/deploy/kubernetes in a cluster.

FROM docker.io/library/rust:1.95-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
COPY . .
# There is no repository in here that could say which commit it is.
ARG GREENDOT_COMMIT=""
# Named, so that what runs while it builds is not static itself.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
    && RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --locked --release --bin greendot --target "$target" \
    && install -D "target/$target/release/greendot" /image/greendot \
    && install -D --mode=644 /etc/ssl/certs/ca-certificates.crt \
        /image/etc/ssl/certs/ca-certificates.crt \
    && install -d /empty

FROM scratch
COPY --from=build /image /
COPY --from=build --chown=10001:10001 /empty /var/lib/greendot
# Nobody of this number is on the host; mounted key files are for it or its group.
USER 10001:10001
ENV GREENDOT_DATA_DIR=/var/lib/greendot
VOLUME /var/lib/greendot
# HTTP, beats, and operators where --admin says so.
EXPOSE 8080 8081/udp 8082
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["/greendot", "health"]
ENTRYPOINT ["/greendot"]
CMD ["serve"]
