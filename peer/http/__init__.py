"""The small HTTP/1.1 server and engine client, moved by callbacks on one epoll."""
