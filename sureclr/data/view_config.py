from sureclr.data.views import ViewConfig as ViewConfig
