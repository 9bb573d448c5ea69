FROM python:3.12-slim

RUN useradd --create-home --uid 10001 causeway
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
COPY app.py wsgi.py gunicorn.conf.py config.json gpts.json ./
COPY services services
RUN mkdir -p data images files log && chown 10001 data images files log
USER 10001

ENV PYTHONUNBUFFERED=1 SERVER_HOST=0.0.0.0 SERVER_PORT=33333
EXPOSE 33333
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:33333/ready', timeout=4)"]
CMD ["python", "-m", "services.server.start", "--user", "10001"]
